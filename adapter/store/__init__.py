"""The hinge of the program: what is stored, and how it waits for the broker.

```
outbox     the async face: commit on the left, the line and the newest values on the right
writer     group commit on one thread        newest     the newest values on their way
worker     that thread
database   what is written and read          file, lock the SQLite file itself, and that it is ours
records    what is stored, as values         sql, rows  its statements, and its rows as values
```
"""
