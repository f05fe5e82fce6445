"""The texts of a Slurm on this machine: what a node does when it boots, and slurm.conf."""

INIT = r"""
set -e
name=$1 dir=$2 group=$3
hostname "$name"
mount --bind "$dir/nodes/$name/hosts" /etc/hosts
mount --bind "$dir/etc/nsswitch.conf" /etc/nsswitch.conf
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
mkdir -p "$dir/nodes/$name/local"
mount --bind "$dir/nodes/$name/local" "$dir/local"
ip link set lo up
if [ -n "$group" ]; then   # a freezer group of version 1 per node, whatever the machine itself uses
  mkdir -p "$dir/nodes/$name/cg"
  mount -t cgroup -o freezer none "$dir/nodes/$name/cg"
  mkdir -p "$dir/nodes/$name/cg/$group.$name"
  mount --bind "$dir/nodes/$name/cg/$group.$name" "$dir/cg/freezer"
  umount "$dir/nodes/$name/cg"
fi
touch "$dir/nodes/$name/booted"
set +e
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""

CONF = """
ClusterName=test
SlurmctldHost=ctl({ctl})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.sock
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
LogTimeFormat=iso8601_ms
ProctrackType=proctrack/{proctrack}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
PropagateResourceLimits=NONE
ReturnToService=1
SlurmdTimeout={slurmd_timeout_s}
SlurmctldTimeout=30
MessageTimeout=5
TCPTimeout=2
KillWait={kill_wait_s}
UnkillableStepTimeout=30
InactiveLimit=0
MinJobAge=600
JobRequeue=1
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={grace_s}
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
