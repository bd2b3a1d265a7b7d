#include "io/parquet_schema.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/printable.h"

namespace mixtral {
namespace {

constexpr size_t kMostFields = 20'000;
constexpr int kDeepestColumn = 24;  // a list takes two
constexpr size_t kLongestPath = 1024;

/// A field as the file lists it.
struct Element {
  ParquetNode node;
  int64_t children = 0;
  bool has_type = false;
};

void set_unread(ParquetNode& node, std::string_view what) {
  node.meaning = ParquetMeaning::unread;
  node.unread = what;
}

/// The older way of the format to say what a field means.
void read_converted(int64_t number, ParquetNode& node) {
  switch (number) {
    case 1:
    case 2:
      node.meaning = ParquetMeaning::map;
      break;
    case 3:
      node.meaning = ParquetMeaning::list;
      break;
    case 5:
      set_unread(node, "a decimal number");
      break;
    case 11:
    case 12:
    case 13:
    case 14:
      node.meaning = ParquetMeaning::unsigned_integer;
      break;
    case 20:
      set_unread(node, "BSON");
      break;
    case 21:
      set_unread(node, "a span of time");
      break;
    default:
      break;  // texts, dates and signed numbers, which are read as they are stored
  }
}

/// The newer way: a structure with one field, whose number says it.
void read_logical(ThriftReader& thrift, ParquetNode& node) {
  thrift.each_field([&](int id, ThriftType) {
    switch (id) {
      case 2:
        node.meaning = ParquetMeaning::map;
        break;
      case 3:
        node.meaning = ParquetMeaning::list;
        break;
      case 5:
        set_unread(node, "a decimal number");
        break;
      case 10:
        thrift.each_field([&](int part, ThriftType type) {
          if (part != 2) return false;
          if (!thrift.boolean(type)) node.meaning = ParquetMeaning::unsigned_integer;
          return true;
        });
        return true;
      case 13:
        set_unread(node, "BSON");
        break;
      case 14:
        set_unread(node, "a UUID");
        break;
      case 15:
        set_unread(node, "a 16-bit number");
        break;
      case 16:
      case 17:
      case 18:
        set_unread(node, "a variant or a place on a map");
        break;
      default:
        break;
    }
    return false;
  });
}

Element read_element(ThriftReader& thrift, const ParquetPlace& place) {
  Element element;
  ParquetNode& node = element.node;
  thrift.each_field([&](int id, ThriftType type) {
    switch (id) {
      case 1: {
        const int64_t number = thrift.integer(type);
        if (number < 0 || number > static_cast<int64_t>(ParquetType::fixed_bytes))
          place.fail(fmt::format("a column has the unknown type {}", number));
        node.type = static_cast<ParquetType>(number);
        element.has_type = true;
        return true;
      }
      case 3: {
        const int64_t number = thrift.integer(type);
        if (number < 0 || number > 2)
          place.fail(fmt::format("a field has the unknown repetition {}", number));
        node.repetition = static_cast<ParquetNode::Repetition>(number);
        return true;
      }
      case 4: {
        const std::string_view name = thrift.text(type);
        if (name.size() > kLongestPath)
          place.fail(fmt::format("a column's name has {} bytes; at most {} are accepted",
                                 name.size(), kLongestPath));
        node.name = name;
        return true;
      }
      case 5:
        element.children = thrift.integer(type);
        return true;
      case 6:
        read_converted(thrift.integer(type), node);
        return true;
      case 10:
        if (type != ThriftType::structure) return false;
        read_logical(thrift, node);
        return true;
      default:
        return false;
    }
  });
  return element;
}

class TreeBuilder {
 public:
  TreeBuilder(std::vector<Element>& elements, const ParquetPlace& place, ParquetMetadata& metadata)
      : elements_(elements), place_(place), metadata_(metadata) {}

  void build() {
    if (elements_.empty()) place_.fail("it has no schema");
    elements_.front().node.repetition = ParquetNode::Repetition::required;
    add({}, 0, 0, 0);
    if (next_ != elements_.size())
      place_.fail("the schema lists more fields than its groups have; the file is damaged");
  }

 private:
  int add(const std::string& group, int repetition_level, int definition_level, int depth) {
    if (next_ == elements_.size())
      place_.fail("the schema lists fewer fields than its groups have; the file is damaged");
    if (depth > kDeepestColumn)
      place_.fail(fmt::format("columns are nested deeper than {}", kDeepestColumn));
    Element& element = elements_[next_++];
    const auto self = static_cast<int>(metadata_.nodes.size());
    metadata_.nodes.push_back(std::move(element.node));
    {
      ParquetNode& node = metadata_.nodes.back();
      repetition_level += node.repetition == ParquetNode::Repetition::repeated;
      definition_level += node.repetition != ParquetNode::Repetition::required;
      if (depth > 0) node.path = group.empty() ? node.name : group + '.' + node.name;
      if (node.path.size() > kLongestPath)
        place_.fail(
            fmt::format("a column's name has {} bytes with those of its groups; at most {} "
                        "are accepted",
                        node.path.size(), kLongestPath));
      node.repetition_level = repetition_level;
      node.definition_level = definition_level;
      node.first_column = static_cast<int>(metadata_.columns.size());
    }
    if (element.has_type) {
      if (element.children != 0) place_.fail("a column has fields, as only groups have");
      metadata_.columns.push_back(self);
    } else {
      add_children(element.children, self, repetition_level, definition_level, depth);
    }
    metadata_.nodes[static_cast<size_t>(self)].end_column =
        static_cast<int>(metadata_.columns.size());
    return self;
  }

  void add_children(int64_t count, int self, int repetition_level, int definition_level,
                    int depth) {
    if (count <= 0) place_.fail("a group of columns has no fields");
    const std::string path = metadata_.nodes[static_cast<size_t>(self)].path;
    std::set<std::string> names;
    for (int64_t i = 0; i < count; ++i) {
      const int child = add(path, repetition_level, definition_level, depth + 1);
      metadata_.nodes[static_cast<size_t>(self)].children.push_back(child);
      const std::string& name = metadata_.nodes[static_cast<size_t>(child)].name;
      if (!names.insert(name).second)
        place_.fail(fmt::format("the column \"{}\" stands twice", printable(name)));
    }
  }

  std::vector<Element>& elements_;
  const ParquetPlace& place_;
  ParquetMetadata& metadata_;
  size_t next_ = 0;
};

}  // namespace

void read_parquet_schema(ThriftReader& thrift, ThriftType type, const ParquetPlace& place,
                         ParquetMetadata& metadata) {
  if (!metadata.nodes.empty()) place.fail("it has two schemas; the file is damaged");
  std::vector<Element> elements;
  thrift.each_item(type, ThriftType::structure, [&] {
    if (elements.size() == kMostFields)
      place.fail(fmt::format("it has more columns and groups than {}", kMostFields));
    elements.push_back(read_element(thrift, place));
  });
  TreeBuilder(elements, place, metadata).build();
}

}  // namespace mixtral
