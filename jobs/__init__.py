"""What server and workers share: the store of files, the journals of jobs, and the queue."""
