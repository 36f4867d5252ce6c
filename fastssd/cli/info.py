"""``fastssd info``."""

from __future__ import annotations

from fastssd.cli.common import Json, command, print_json, print_table


@command()
def info(as_json: Json = False) -> None:
    """Show version, backends, instruction set and threads.

    \b
    [bold]Examples[/bold]
      fastssd info
      fastssd info --json | jq .backend
      FASTSSD_BACKEND=reference fastssd info
    """
    import fastssd
    from fastssd.backends import available_backends, load_backend

    config = fastssd.show_config()
    backends: dict[str, str | None] = {}  # name: why it cannot run here; None if it can
    for name in ("cpp", "numba", "reference"):
        backends[name] = None
        if name not in available_backends():
            try:
                load_backend(name)
            except RuntimeError as error:
                backends[name] = str(error)
    if as_json:
        print_json(config | {"backends": backends})
        return

    rows = [("fastssd", config["fastssd"]), ("python", f"{config['python']} on {config['platform']}")]
    rows += [(package, config[package] or "not installed") for package in ("numpy", "numba", "torch")]
    for name, reason in backends.items():
        state = "in use" if name == config["backend"] else "available"
        rows.append((f"backend {name}", reason or state))
    isa = f"{config['isa']} in use; this CPU can run {', '.join(config['available_isas'])}"
    rows.append(("instruction set", isa if config["isa"] else "none: no compiled kernels"))
    rows.append(("threads", str(config["num_threads"])))
    rows += list(config["environment"].items())
    print_table(rows)
