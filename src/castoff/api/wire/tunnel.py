"""The words of a connection to a machine's port, a WebSocket (castoff.api.routes.ports).

Once the machine's port is connected the server says "connected". Binary messages are bytes of the connection, both ways; "end"
from the client is the end of what it sends. The server closes: normally after the machine's last byte; with 4000 and the HTTP
status that the failure would have had where it could not connect or the machine ended, and why.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CONNECTED", "END", "LONGEST", "NORMAL", "REFUSED"]

CONNECTED: Final = "connected"
END: Final = "end"
NORMAL: Final = 1000
REFUSED: Final = 4000
"""And an HTTP status: the code of a close."""
LONGEST: Final = 1 << 20
"""Bytes of a message."""
