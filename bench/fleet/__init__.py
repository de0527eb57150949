"""A fleet under harm: members, NATS servers and the ways between them fail, and the proof of what holds all the same.

```
gateway (simulator, ledger) <-HTTPS-  four members, a machine each  -MQTT-> mosquitto -> subscriber (persistent session)
        |                               |  NATS  |                                            |
        |                       three nats-server, a machine each                             |
        +------------------------------> judge <----------------------------------------------+
```

A machine is a network namespace with an address of its own, so that the way between any two of them can be cut without
a word. All of them live in a namespace of the benchmark's, and go with it. Processes share the system's monotonic
clock, which all moments are of.
"""
