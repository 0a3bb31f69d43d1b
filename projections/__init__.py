"""Read models: what the log says, as rows in Postgres.

``tables`` is the schema, ``fold`` turns a batch of the log into rows, ``write`` stores them in one transaction with the
checkpoint, ``runner`` follows a partition, ``read`` answers questions. Imports ``events`` only, never ``service``.
"""
