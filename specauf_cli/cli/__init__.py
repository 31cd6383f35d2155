"""The commands: they parse words and call one function below."""
