"""Templates of the jobs. %name is a placeholder, so that the shell's own $name needs no escape."""

import string


class Template(string.Template):
    """A string template with %name placeholders."""

    delimiter = "%"


SLURM = Template("""\
#!/bin/bash
%directives
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@%warning

cd %root || exit 2
%setup%choose_run# If a task fails or is lost, srun ends the others.
srun --kill-on-bad-exit=1%cpus %python -m patchnets.main %run
status=$?
# 143: stopped by SIGTERM with the state saved. Requeue to resume.
if [ $status -eq 143 ] && [ ${SLURM_RESTART_COUNT:-0} -lt %max_requeues ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
""")

# Values are JSON, which is valid YAML.
K8S = Template("""\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: %name%namespace
spec:
  failurePolicy:
    maxRestarts: %max_restarts
    rules:
    - name: refused
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: run
    replicas: 1
    template:
      spec:
        parallelism: %nodes
        completions: %nodes
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          # Exit status 2: the request is invalid and is not retried.
          - action: FailJob
            onExitCodes: {operator: In, values: [2]}
        template:
          spec:
            restartPolicy: Never
            # Seconds to save the state.
            terminationGracePeriodSeconds: %grace%node_selector
            containers:
            - name: patchnets
              image: %image
              command:%command%env%resources
              volumeMounts:
              - {name: runs, mountPath: %mount}
              # Image workers need more shared memory than a pod's default of 64 MiB.
              - {name: shared-memory, mountPath: /dev/shm}
            volumes:
            - name: runs
              persistentVolumeClaim: {claimName: %claim}
            - name: shared-memory
              emptyDir: {medium: Memory}
""")

# For several pods. Kubernetes sets the index of each in JOB_COMPLETION_INDEX.
K8S_ENV = Template("""
              env:
              - {name: PATCHNETS_COORDINATOR, value: %coordinator}
              - {name: PATCHNETS_PROCESSES, value: "%nodes"}""")

TPU = Template("""\
#!/bin/bash
# %workdir must be shared by all hosts: NFS, or a bucket mounted by gcsfuse (--setup).
set -euo pipefail
cd %root
tpu() { gcloud compute tpus tpu-vm "$@" %location; }
on_all() { tpu ssh %name --worker=all --command="$1"; }

tpu create %name --accelerator-type=%kind --version=%runtime
trap 'tpu delete %name --quiet' EXIT
archive=$(mktemp) && git archive --output="$archive" --format=tar HEAD
tpu scp "$archive" %name:patchnets.tar --worker=all && rm "$archive"
%install
status=0
%runs
exit $status
""")
