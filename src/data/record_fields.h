#pragma once

#include <string>
#include <string_view>

#include "data/record.h"
#include "io/json.h"

namespace mixtral {

/// The member of an object, or null when it is absent or a JSON null, which tables have in the
/// columns that a row does not use.
const Json* find_value(const Json& json, std::string_view key);

/// Whether there is nothing but white space.
bool is_blank(std::string_view text);

enum class Needed { yes, no };
/// A string that text may be made of. Throws Error naming the value when it is no string, holds a
/// NUL character, or is blank although it is needed.
std::string record_text(const Json& value, Needed needed);

/// Throws Error naming a field of the record that other programs act on and this one does not, such
/// as `tools` or a sample's `weight`, unless its value changes nothing there either. Fields that no
/// program acts on are ignored, and so is the one that the caller reads itself.
void refuse_unread_fields(const Json& json, RecordKind kind, std::string_view source,
                          std::string_view read_by_caller = {});

/// Whether the function above may refuse a field of that name.
bool is_unread_field(std::string_view name);

/// A turn of a conversation: role, content and, of the assistant's, `weight` (0: it is not learnt;
/// 1 or absent: it is). Throws Error naming a wrong role, empty text, another weight, or a field of
/// the turn that other programs act on and this one does not.
Message read_turn(const Json& turn);

}  // namespace mixtral
