#!/bin/sh
# Submits a job for each app: run this script itself, not with sbatch.
set -e

job0=$(sbatch --parsable <<'end-of-store'
#!/bin/sh
#SBATCH --job-name=store
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@15
#SBATCH --open-mode=append
#SBATCH --chdir=/srv/site
# Plain scancel signals all its processes at once, and kills them after the cluster's KillWait, 30 s by default.
# This stops it as daemonkit stop does:
#   scancel --batch --signal=TERM JOB
# This shows how it is:
#   srun --overlap --jobid=JOB sh -c 'DAEMONKIT_HOME=${TMPDIR:-/tmp}/daemonkit-JOB daemonkit status NAME'
# A job whose node fails is queued again (--requeue); before its time limit daemonkit is asked to stop (--signal).
# No --time is asked for, so that the partition's holds.
# listen = ["0.0.0.0:6400"]: it is bound on the node that the job gets: squeue tells which
# cwd = "/srv/site": it must be there on each node
# env (STORE, GREETING): the values stand here in plain text; a secret belongs into a file of mode 600 that the program
# reads
export DAEMONKIT_HOME="${TMPDIR:-/tmp}/daemonkit-$SLURM_JOB_ID"
export PATH=/srv/venv/bin:/usr/bin:/bin
export STORE=store:6400
export GREETING=hello
exec /srv/venv/bin/python -m daemonkit run store -i 1 --wait-ready --listen=0.0.0.0:6400 -- python store.py
end-of-store
)
job0="${job0%%;*}"
echo "store: job $job0"

job1=$(sbatch --parsable --dependency=after:$job0 <<'end-of-web'
#!/bin/sh
#SBATCH --job-name=web
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:TERM@15
#SBATCH --open-mode=append
#SBATCH --chdir=/srv/site
# Plain scancel signals all its processes at once, and kills them after the cluster's KillWait, 30 s by default.
# This stops it as daemonkit stop does:
#   scancel --batch --signal=TERM JOB
# This shows how it is:
#   srun --overlap --jobid=JOB sh -c 'DAEMONKIT_HOME=${TMPDIR:-/tmp}/daemonkit-JOB daemonkit status NAME'
# A job whose node fails is queued again (--requeue); before its time limit daemonkit is asked to stop (--signal).
# No --time is asked for, so that the partition's holds.
# listen = ["0.0.0.0:8000"]: it is bound on the node that the job gets: squeue tells which
# cwd = "/srv/site": it must be there on each node
# env (STORE, GREETING): the values stand here in plain text; a secret belongs into a file of mode 600 that the program
# reads
# after = ["store"]: the job begins once the other one has begun, which may not be up yet
# instances = 2: all are in one job, on one node, as they share its sockets or CPUs
export DAEMONKIT_HOME="${TMPDIR:-/tmp}/daemonkit-$SLURM_JOB_ID"
export PATH=/srv/venv/bin:/usr/bin:/bin
export STORE=store:6400
export GREETING=hello
exec /srv/venv/bin/python -m daemonkit run web -i 2 --wait-ready --listen=0.0.0.0:8000 -- python web.py
end-of-web
)
job1="${job1%%;*}"
echo "web: job $job1"

job2=$(sbatch --parsable --dependency=after:$job0 <<'end-of-scheduler'
#!/bin/sh
#SBATCH --job-name=scheduler
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@15
#SBATCH --open-mode=append
#SBATCH --chdir=/srv/site
# Plain scancel signals all its processes at once, and kills them after the cluster's KillWait, 30 s by default.
# This stops it as daemonkit stop does:
#   scancel --batch --signal=TERM JOB
# This shows how it is:
#   srun --overlap --jobid=JOB sh -c 'DAEMONKIT_HOME=${TMPDIR:-/tmp}/daemonkit-JOB daemonkit status NAME'
# A job whose node fails is queued again (--requeue); before its time limit daemonkit is asked to stop (--signal).
# No --time is asked for, so that the partition's holds.
# cwd = "/srv/site": it must be there on each node
# env (STORE, GREETING, EVERY): the values stand here in plain text; a secret belongs into a file of mode 600 that the
# program reads
# after = ["store"]: the job begins once the other one has begun, which may not be up yet
export DAEMONKIT_HOME="${TMPDIR:-/tmp}/daemonkit-$SLURM_JOB_ID"
export PATH=/srv/venv/bin:/usr/bin:/bin
export STORE=store:6400
export GREETING=hello
export EVERY=0.5
exec /srv/venv/bin/python -m daemonkit run scheduler -i 1 -- python scheduler.py
end-of-scheduler
)
job2="${job2%%;*}"
echo "scheduler: job $job2"
