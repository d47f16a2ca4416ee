"""The demo's input: a program, and real data that is in the public domain.

``zone1970.tab`` and ``tzdata.zi`` are files of the IANA time zone database 2025b (https://www.iana.org/time-zones),
which is in the public domain: where the world's places are, and every clock they have had since the 19th century.
"""
