// What PM2 restarts under load: its cluster mode shares a socket among programs in Node alone. FIFO and PORT are in the
// environment; as in PM2's manual it says when it is ready, and ends what has begun on SIGINT.
const fs = require("fs");
const http = require("http");

const server = http.createServer((request, response) => response.end("ok\n"));
server.keepAliveTimeout = 1;
server.listen(Number(process.env.PORT), "127.0.0.1", 1024, () => {
  fs.appendFileSync(process.env.FIFO, `main ${process.pid} ${process.hrtime.bigint()}\n`);
  process.send("ready");
});
process.on("SIGINT", () => server.close(() => process.exit(0)));
