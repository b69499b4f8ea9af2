"""Learning to use tools: `python -m recipes.tool_use` (a calculator) and `python -m recipes.tool_use.search` (questions of several hops)."""
