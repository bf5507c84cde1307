"""Decides how much one client, or all of them together, may ask of the server; imports nothing, so that `--help` can show it."""

from dataclasses import dataclass

from packtrain.errors import ConfigError


@dataclass(frozen=True)
class ServeLimits:
    """What the server refuses to exceed.

    slots               texts that are generated at once; each has memory for a whole context
    queue               texts that wait for a slot; a request beyond that is refused with 429
    max_seconds         a request, from its last byte to the end of its answer
    max_body_bytes      a request's body
    max_connections     open connections; one beyond that is answered with 503
    read_s              a request, from the opening of the connection to its last byte
    write_s             how long an answer may wait for a client that does not read it
    held_bytes          bodies of all requests that are being read

    Raises ConfigError for a value outside its range.
    """

    slots: int = 16
    queue: int = 256
    max_seconds: float = 600.0
    max_body_bytes: int = 1 << 20
    max_connections: int = 800
    read_s: float = 20.0
    write_s: float = 30.0
    held_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        needs = {
            "slots": (1 <= self.slots <= 1024, "a whole number from 1 to 1024"),
            "queue": (0 <= self.queue <= 100_000, "a whole number from 0 to 100000"),
            "max_seconds": (0.0 < self.max_seconds < float("inf"), "a number above 0"),
        }
        for name, (fits, need) in needs.items():
            if not fits:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} is out of range; give {need}")
