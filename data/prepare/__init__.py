"""Real captioned pictures from packages that the usual clients can fetch: `python -m data.prepare emoji --out DIR`."""
