#!/usr/bin/env bash
# Starts a SLURM of one node on this machine, runs a command that can submit to it, and stops it again:
#
#   tools/slurm_local.sh COMMAND ...
#
# For tests of job back ends, not for work. Needs root, and Debian's or Ubuntu's packages slurmctld, slurmd, slurm-client
# and munge; with MOE_ASR_INSTALL_SLURM=1 it installs them where they are missing. All of it lives in a folder of its own
# under /tmp, listens on ports that were free, and touches no other SLURM. Exit code 3: it cannot start here, and one line
# says why; otherwise that of the command.

set -uo pipefail
[ $# -gt 0 ] || { echo "usage: ${0##*/} COMMAND ..." >&2 && exit 2; }
export PATH=$PATH:/usr/sbin:/sbin

cannot() {
  echo "slurm_local: $1" >&2
  exit 3
}

missing() {
  local name
  for name in slurmctld slurmd sbatch munged; do command -v "$name" >/dev/null || echo "$name"; done
}

[ "$(id -u)" = 0 ] || cannot "SLURM's daemons need root here"
if [ -n "$(missing)" ]; then
  [ "${MOE_ASR_INSTALL_SLURM-}" = 1 ] ||
    cannot "SLURM is not installed (no $(missing | paste -sd ' ')); MOE_ASR_INSTALL_SLURM=1 installs it"
  {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      slurmctld slurmd slurm-client munge
  } >/dev/null 2>&1 || cannot "the packages slurmctld, slurmd, slurm-client and munge cannot be installed"
fi

folder=$(mktemp -d /tmp/slurm-local.XXXXXX)
chmod 755 "$folder"
daemons=()
stop() {
  trap '' INT TERM HUP
  if [ ${#daemons[@]} -gt 1 ]; then
    scancel --user=root >/dev/null 2>&1
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      [ -n "$(squeue --noheader 2>/dev/null)" ] || break
      sleep 0.5
    done
  fi
  [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null
  wait
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

ports=$(
  python3 - <<'END'
import socket
held = [socket.socket() for _ in range(2)]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
END
) || cannot "no python3"
host=$(hostname -s)
memory=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
mkdir "$folder"/{state,spool,munge}
chmod 711 "$folder/munge"
head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 400 "$folder/munge/key"
# A job that is queued again waits for as long as credentials are valid (cred_expire) before it starts: what comes late of
# its end would else be taken for the end of its second start.
cat >"$folder/slurm.conf" <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=30
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
InactiveLimit=0
KillWait=60
SwitchType=switch/none
MailProg=/bin/true
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
END
export SLURM_CONF=$folder/slurm.conf
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" &
daemons+=($!)
for _ in $(seq 100); do
  [ ! -S "$folder/munge/socket" ] || break
  sleep 0.1
done
slurmctld -D >/dev/null 2>&1 &
daemons+=($!)
slurmd -D >/dev/null 2>&1 &
daemons+=($!)
for _ in $(seq 150); do
  [[ $(sinfo --noheader --format=%t 2>/dev/null) != idle* ]] || break
  kill -0 "${daemons[@]}" 2>/dev/null || break
  sleep 0.2
done
if [[ $(sinfo --noheader --format=%t 2>/dev/null) != idle* ]]; then
  cannot "it did not start: $(grep -h error: "$folder"/*.log | tail -n 1)"
fi

"$@" <&0 & # without this it would read nothing
command=$!
wait "$command"
exit $?
