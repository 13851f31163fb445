"""The exporter: what the brokers of this host count, as Prometheus asks for it.

Purpose: metrics of all brokers of a runtime folder, without a request to any of them.
Process: shmq-exporter.
Writes: its answers over HTTP; nothing shared.
Reads: what the monitor reads; the socket that systemd passes in.
May import: the monitor and everything below it, prometheus-client.
Never: asks a broker, writes to its memory, shows who a client is.
"""
