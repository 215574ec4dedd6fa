"""The feature store in Redis, Valkey, Sentinel and Cluster.  The way in is `feature_store.store.open_store`."""
