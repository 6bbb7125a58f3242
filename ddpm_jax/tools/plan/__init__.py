"""What a run would need and do on TPUs, found on a machine without one by compiling its programs for them.

`chips` knows what chips can do, `hlo` reads collectives from a compiled program, `roofline` turns both into bounds on
time, `worker` compiles in a process of its own, `planner` puts this together, and `command` is `ddpm-jax plan`. Bytes
and FLOPs are those of one chip unless their name says otherwise; times are seconds.
"""
