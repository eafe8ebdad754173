"""Live answers: who generates text for a task within a token cap, who checks it, and how answers become a table.

``base`` is the protocols; ``local`` a Hugging Face model in this process, ``http`` any endpoint (``backends``: what each
calls things); ``recording`` resumable journals and the outcome tables made of them.
"""
