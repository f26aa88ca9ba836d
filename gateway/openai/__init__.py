"""OpenAI's dialect: requests read, answers and errors written; nothing of the services behind."""
