"""The program under harm: what kills it, cuts it off and takes its broker away, and the proof that nothing was lost.

```
gateway (simulator, ledger)  <-HTTPS-  ccgateway2mqtt run  <-MQTT-  relay (witness)  <-MQTT-  mosquitto  -  peers
            |                                                          |                                      |
            +----------------------------------> judge <---------------+--------------------------------------+
```

`gateway`, the adapter and Mosquitto are processes of their own; `stage` starts them. Times are those of the
system's monotonic clock, which all processes share.
"""
