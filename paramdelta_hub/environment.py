"""The variables of the environment that are read, beside those of the Hub's own client."""

from __future__ import annotations

__all__ = ["KEYS_VARIABLE", "PASSWORD_VARIABLE", "REGISTRY_VARIABLE", "REQUIRE_VARIABLE"]

REGISTRY_VARIABLE = "PARAMDELTA_REGISTRY"
"""Names the registry of a bare ``org/name`` where no option does: a folder or an fsspec URL."""

REQUIRE_VARIABLE = "PARAMDELTA_REQUIRE_SIGNATURE"
"""If set and not 0: whatever comes from a registry must be signed by a trusted key, without an option."""

KEYS_VARIABLE = "PARAMDELTA_TRUSTED_KEYS"
"""Names public keys and folders of them, joined as in PATH; used instead of the configuration's folder."""

PASSWORD_VARIABLE = "PARAMDELTA_KEY_PASSWORD"
"""Opens an encrypted private key."""
