"""The storage proxy: virtual folders on volume backends, a data plane apart from the Manager.

Reserved: sessions have their own folders, which the agents keep; folders that outlive sessions are not there yet, and
a create call that asks for mounts is refused with a sentence.
"""
