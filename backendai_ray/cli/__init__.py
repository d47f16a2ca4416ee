"""``bai``: the cluster from a shell."""
