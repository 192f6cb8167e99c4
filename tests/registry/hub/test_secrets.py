"""What may not be seen: tokens, and addresses that work without one."""

from __future__ import annotations

import io
import logging

from huggingface_hub.utils import logging as client_logging

from paramdelta_hub.fileio.names import without_secrets
from paramdelta_hub.hub.client import connect

SIGNED = "https://cdn.example.org/a/b?X-Amz-Signature=0123abc&X-Amz-Expires=60"


def test_addresses_lose_their_query_and_password_and_texts_their_tokens() -> None:
    text = f"GET {SIGNED} by hf_AbCdEf0123456789 at http://me:word@host/x failed"
    assert without_secrets(text) == "GET https://cdn.example.org/a/b?… by … at http://…@host/x failed"
    assert without_secrets("org/name@1.0.0: what is wrong? nothing") == "org/name@1.0.0: what is wrong? nothing"


def test_the_log_of_the_hubs_client_has_no_secrets() -> None:
    connect()
    (handler, *_) = logging.getLogger("huggingface_hub").handlers
    assert isinstance(handler, logging.StreamHandler)
    shown = io.StringIO()
    before = handler.setStream(shown)
    try:
        client_logging.get_logger("huggingface_hub.utils._http").warning("'%s' thrown while requesting %s", "x", SIGNED)
    finally:
        handler.setStream(before)
    assert "thrown while requesting https://cdn.example.org/a/b" in shown.getvalue()
    assert "0123abc" not in shown.getvalue()
