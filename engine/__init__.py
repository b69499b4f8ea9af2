"""What actors stand on: the runtime, ports to models, rendering, training, storage and telemetry. Each is a package of its own; nothing is imported here."""
