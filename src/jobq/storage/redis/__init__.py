"""Jobs on Redis and Valkey: see `storage`."""

from jobq.storage.redis.storage import RedisStorage

__all__ = ["RedisStorage"]
