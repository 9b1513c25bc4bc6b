"""Several processes that train one model: a gang.

What the pod sets, and nothing else of the cluster is read:

FINETUNE_GPUS          GPUs of this pod; one process each. 0: the processors, FINETUNE_PROCESSES processes (1).
FINETUNE_DISTRIBUTION  spec.compute.distribution as JSON; without it, what run.json has.
FINETUNE_NODES         pods of the gang, 1 when absent. Every pod has the same number of processes.
FINETUNE_NODE_RANK     this pod's number, from 0: the completion index of an Indexed Job.
FINETUNE_RENDEZVOUS    HOST:PORT at which the processes find each other: a name of pod 0, and a port that is free
                       there. Needed with more than one pod.

All pods share the artifact volume. The stage's command is the same on all of them; each starts its own processes and
ends with one exit code. Pod 0 alone writes the termination summary of a finished training. A pod whose process fails
ends with that failure, and so do the pods that were waiting for it: whoever runs the gang starts all of its pods again,
and they go on from the newest checkpoint. A SIGTERM to any one pod stops the whole gang, after a checkpoint, with 75.
"""
