"""Training: any checkpoint on a user's conversations, whole or by an adapter."""
