#pragma once

#include <vector>

#include "io/parquet_metadata.h"
#include "io/parquet_thrift.h"

namespace mixtral {

/// Reads the schema of a footer, a list of fields in which groups come before their fields, into
/// the nodes and columns of `metadata`. Throws Error for a tree that is none, and for one that is
/// too deep or too large.
void read_parquet_schema(ThriftReader& thrift, ThriftType type, const ParquetPlace& place,
                         ParquetMetadata& metadata);

}  // namespace mixtral
