"""The event log on Apache Kafka, in Avro as Confluent's serializers write it."""
