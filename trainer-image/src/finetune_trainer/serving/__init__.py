"""An OpenAI-compatible server for small models and machines without a GPU."""

from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.config import ServerConfig, ServingError
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.lifecycle import Lifecycle
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.server import serve

__all__ = ["Engine", "Lifecycle", "Metrics", "ServerConfig", "ServingError", "create_app", "serve"]
