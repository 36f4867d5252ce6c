"""Other detectors' names and exact semantics on our kernels: one module a host, imported only when used."""
