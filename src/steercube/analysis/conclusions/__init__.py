"""What may be said: tables, the ledger of claims, conclusions."""
