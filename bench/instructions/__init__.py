"""How many machine instructions a poll and an event cost, as a ratio to the least that Python needs for the same job.

```
peer (gateway, answers at once)  <-HTTPS-  work, under cachegrind  -MQTT->  mosquitto
```

Instructions hardly depend on how busy a machine is, where time does. What they still depend on (the processor, OpenSSL,
the build of Python) changes the bare loops of `work` as well, so the ratio is what is watched. Each job is done N times
and 2N times in forks of one process: the difference of the two is N times the job, without start and end.
"""
