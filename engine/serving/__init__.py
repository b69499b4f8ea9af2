"""An OpenAI-compatible endpoint for any policy of this engine, so that chat clients and other people's environments can drive one, in training too.

    from engine.serving.endpoint import Endpoint
    from engine.serving.limits import Limits
    from engine.serving.served import ServedPolicy
    from engine.serving.server import serving

    endpoint = Endpoint({"policy": ServedPolicy(policy, renderer)}, api_key=key)
    async with serving(endpoint) as address: ...

It needs the extra `serve`.
"""
