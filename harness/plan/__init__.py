"""From a request to the distillations and evaluations that it asks for. Nothing here distils or trains."""
