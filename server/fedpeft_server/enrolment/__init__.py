"""Who may take part: admission, the registry, join tokens, the certificate authority, the audit log."""
