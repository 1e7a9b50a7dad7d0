// A caller in Node that launches on request: `spawn.js MEGABYTES`. See spawner.py, whose questions it answers.
'use strict';

const { spawn } = require('node:child_process');
const readline = require('node:readline');

const PAGE = 4096;
const CHUNK = 64 << 20;

// In chunks: one Buffer has a limit that changes from release to release.
function grow(megabytes) {
  const chunks = [];
  let missing = megabytes * 1048576 - process.memoryUsage.rss();
  for (; missing > 0; missing -= CHUNK) {
    const chunk = Buffer.allocUnsafeSlow(Math.min(CHUNK, missing));
    for (let at = 0; at < chunk.length; at += PAGE) chunk[at] = 1;
    chunks.push(chunk);
  }
  return chunks;
}

// What is timed is spawn() alone, which returns once the program has been exec'ed; the end is waited for after it.
function once(program) {
  return new Promise((resolve, reject) => {
    const begin = process.hrtime.bigint();
    const child = spawn(program, [], { detached: true, stdio: 'ignore' });
    child.unref();
    const elapsed = Number(process.hrtime.bigint() - begin);
    child.on('error', reject);
    child.on('exit', () => resolve(elapsed));
  });
}

async function serve(megabytes) {
  const ballast = grow(megabytes);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [program, repeat] = line.split(' ');
    const times = [];
    while (times.length < Number(repeat)) times.push(await once(program));
    times.sort((a, b) => a - b);
    process.stdout.write(`${times[times.length >> 1]}\n`);
  }
  return ballast;
}

serve(Number(process.argv[2]));
