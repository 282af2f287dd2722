"""The online service: a thin FastAPI application over robustclip and prompts_store."""
