#!/bin/sh
# Process 1 of a node: node.sh CACHE NAME, in namespaces of its own.
# Its root is the engines' root, with all changes in memory.
set -e
cache=$1 name=$2 folder=$1/node
hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o mode=755 node "$folder"
mkdir "$folder/changes" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=$cache/root,upperdir=$folder/changes,workdir=$folder/work" node "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup sys/fs/cgroup
    mkdir sys/fs/cgroup/init
    echo 1 >sys/fs/cgroup/init/cgroup.procs
    for controller in $(cat sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" >sys/fs/cgroup/cgroup.subtree_control || true
    done
else
    mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
    sed 's/^[0-9]*://; s/:.*//' /proc/self/cgroup | grep . | while read -r kind; do
        mkdir "sys/fs/cgroup/${kind#name=}"
        case $kind in name=*) kind=none,$kind ;; esac
        mount -t cgroup -o "$kind" cgroup "sys/fs/cgroup/${kind#none,name=}"
    done
fi
mount -t tmpfs -o mode=755 dev dev
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for place in dev/shm run tmp var/lib/docker var/lib/containerd var/lib/containers; do
    mkdir -p "$place"
    mount -t tmpfs "$name" "$place"  # an overlay can't have its changes on an overlay
done
chmod 1777 tmp dev/shm
mkdir -p cache before
mount --bind -o ro "$cache" cache
ip link set lo up
echo nameserver 127.0.0.1 >etc/resolv.conf  # refuses at once: an engine that looks for a registry must not wait for it
pivot_root . before
umount -l before
exec chroot . /usr/bin/python3 -c '
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print("up", flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
'
