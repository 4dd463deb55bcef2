"""Files on this machine: hashing, writing and linking them so that a crash or another process loses nothing."""
