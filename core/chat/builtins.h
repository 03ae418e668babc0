#pragma once

#include <cstdint>
#include <string>

#include "chat/value.h"

namespace aqhost::jinja {

/// What one rendering may still use. Every step and every byte or item that is made is charged, so
/// that no template takes unlimited time or memory.
class Budget {
 public:
  /// Throws an Error if nothing is left.
  void charge(std::size_t amount) {
    if (amount > left_) exceeded();
    left_ -= amount;
  }
  /// Charges for a text, and returns it.
  Value text(std::string made) {
    charge(made.size() + 1);
    return made;
  }

 private:
  [[noreturn]] static void exceeded();
  std::size_t left_ = std::size_t{1} << 27;
};

/// The functions below are those of Jinja and Python that chat templates use, as
/// transformers.apply_chat_template has them. What is not among them is an Error that names it.

/// The items over which a loop over the value runs.
List items_of(const Value& value, Budget& budget);
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   Budget& budget);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments,
                Budget& budget);
/// object.name(arguments) for strings, lists and dicts.
Value call_method(const Value& object, const std::string& name, const Arguments& arguments,
                  Budget& budget);
Value call_text_method(const std::string& text, const std::string& name, const Arguments& arguments,
                       Budget& budget);
/// Whether Python has such a method of the value, which then hides a key of that name.
bool has_method(const Value& object, const std::string& name);
/// object.name; undefined if there is no such attribute. An Error if the object is undefined.
Value attribute_of(const Value& object, const std::string& name);
Value item_of(const Value& object, const Value& key, Budget& budget);
Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step,
               Budget& budget);
/// An operator of Jinja but for and, or, and comparisons.
Value apply_binary(const std::string& name, const Value& a, const Value& b, Budget& budget);
bool compare(const std::string& name, const Value& a, const Value& b, Budget& budget);
/// to_string(), which is charged before it is made.
std::string printed(const Value& value, Budget& budget);
/// The global function of this name; undefined if there is none.
Value global_function(const std::string& name, Budget& budget);

/// The argument at a place or of a name; null if it is not given.
const Value* argument(const Arguments& arguments, std::size_t place, const char* name);
/// A text argument, or `otherwise` if it is not given.
std::string text_argument(const Arguments& arguments, std::size_t place, const char* name,
                          const std::string& otherwise);
int64_t integer_argument(const Arguments& arguments, std::size_t place, const char* name,
                         int64_t otherwise);
/// str.strip(characters) of Python at one end or both; white space if `characters` is null.
std::string strip(const std::string& text, const Value* characters, bool left, bool right);
std::string to_lower(const std::string& text);
std::string to_upper(const std::string& text);
std::string to_title(const std::string& text);
std::string capitalized(const std::string& text);
std::string replaced(const std::string& text, const std::string& from, const std::string& to,
                     int64_t count, Budget& budget);

}  // namespace aqhost::jinja
