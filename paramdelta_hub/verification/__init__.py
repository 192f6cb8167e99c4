"""Verify packages, and write statements about applied models for other tools."""
