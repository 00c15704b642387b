"""The JSON log format, which carries the ids of requests. Needs no web server."""

import json
import logging
import sys
from datetime import UTC, datetime

from labeler.grounding.engine import current_request_id


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request id if any, and the `fields` given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id.get():
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Send all logging of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore"):  # one line per question to the model would be too much
        logging.getLogger(chatty).setLevel(logging.WARNING)
