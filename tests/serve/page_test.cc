// The page names nothing of other hosts, finds all its files, and has no script in its text.
#include "serve/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "serve/embedded_files.h"

namespace mixtral::serve {
namespace {

std::map<std::string, std::string> files() {
  std::map<std::string, std::string> all;
  for (const EmbeddedFile& file : embedded_files()) all.emplace(file.name, std::string(file.bytes));
  return all;
}

/// What stands between `before` and `after`, each time.
std::vector<std::string> all_between(const std::string& text, const std::string& before,
                                     const std::string& after) {
  std::vector<std::string> found;
  for (size_t at = 0; (at = text.find(before, at)) != std::string::npos;) {
    at += before.size();
    found.push_back(text.substr(at, text.find(after, at) - at));
  }
  return found;
}

TEST(Page, FindsAllItsFiles) {
  const auto all = files();
  ASSERT_TRUE(all.contains("index.html"));
  for (const std::string name : {"src", "href"})
    for (const std::string& target : all_between(all.at("index.html"), " " + name + "=\"", "\""))
      EXPECT_TRUE(target.starts_with("#") || target == "data:," ||
                  (target.starts_with("page/") && all.contains(target.substr(5))))
          << target;
  for (const auto& [name, text] : all)
    for (const std::string& target : all_between(text, "from './", "'"))
      EXPECT_TRUE(all.contains(target)) << name << " imports " << target;
}

TEST(Page, KeepsToItsPolicy) {
  for (const auto& [name, text] : files()) {
    if (name == "openapi.json") continue;
    EXPECT_THAT(text, ::testing::Not(::testing::HasSubstr("innerHTML"))) << name;
    EXPECT_THAT(text, ::testing::Not(::testing::HasSubstr("eval("))) << name;
    for (const std::string& target : all_between(text, "https://", "\""))
      ADD_FAILURE() << name << " names " << target.substr(0, 40);
  }
  const std::string page = files().at("index.html");
  EXPECT_THAT(page, ::testing::Not(::testing::HasSubstr("style=")));
  EXPECT_THAT(page, ::testing::Not(::testing::HasSubstr("onclick")));
  for (const std::string& script : all_between(page, "<script", "</script>"))
    EXPECT_TRUE(script.ends_with(">")) << "a script in the text: " << script;
  EXPECT_THAT(std::string(kPagePolicy), ::testing::Not(::testing::HasSubstr("unsafe")));
}

}  // namespace
}  // namespace mixtral::serve
