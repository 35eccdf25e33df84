"""rism as an HTTP service; `app` makes an ASGI application of a segmenter.

- `app.py`: the addresses
- `service.py`: what they share: the segmenter, the queue, the metrics
- `guard.py`: around every request: key, id, log, count
- `requests.py`: from a body to an image and expressions
- `batching.py`: the queue, and images that are decoded and encoded once
- `model.py`: a segmenter that remembers, warm-up, memory of the GPU
- `answers.py`: results as JSON and pictures
- `examples.py`: drawn scenes to try it with
- `errors.py`: `{"error", "hint"}`
- `metrics.py`: Prometheus
- `openapi.py`: the description, and the page at /docs
- `server.py`: uvicorn and the log
- `settings.py`: limits
- `static/`: the page
"""

from rism.serve.app import app
from rism.serve.settings import ServeSettings

__all__ = ["ServeSettings", "app"]
