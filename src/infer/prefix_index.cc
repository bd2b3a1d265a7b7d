#include "infer/prefix_index.h"

namespace mixtral {

PrefixIndex::Node* PrefixIndex::child(const Node& node, std::span<const int32_t> tokens) {
  const auto found = node.children.find({tokens.begin(), tokens.end()});
  return found == node.children.end() ? nullptr : found->second.get();
}

void PrefixIndex::use(Node* last) {
  for (Node* node = last; node && node->parent; node = node->parent) {
    by_time_.erase({node->last_used, node});
    node->last_used = ++clock_;
    by_time_.insert({node->last_used, node});
  }
}

std::vector<int32_t> PrefixIndex::find(std::span<const int32_t> tokens, int64_t adapter) {
  std::vector<int32_t> pages;
  const auto size = static_cast<size_t>(cache_.page_tokens());
  const auto root = roots_.find(adapter);
  if (root == roots_.end()) return pages;
  Node* node = &root->second;
  while ((pages.size() + 1) * size <= tokens.size()) {
    Node* const next = child(*node, tokens.subspan(pages.size() * size, size));
    if (!next) break;
    pages.push_back(next->page);
    node = next;
  }
  use(node);
  return pages;
}

size_t PrefixIndex::add(std::span<const int32_t> tokens, int64_t adapter,
                        std::span<const int32_t> pages) {
  const auto size = static_cast<size_t>(cache_.page_tokens());
  Node* node = &roots_[adapter];
  size_t done = 0;
  for (; done < pages.size(); ++done) {
    const auto part = tokens.subspan(done * size, size);
    Node* next = child(*node, part);
    if (!next) {
      auto created = std::make_unique<Node>();
      next = created.get();
      next->page = pages[done];
      next->parent = node;
      next->tokens.assign(part.begin(), part.end());
      cache_.retain(next->page);
      ++pages_;
      node->children.emplace(next->tokens, std::move(created));
    } else if (next->page != pages[done]) {
      break;
    }
    node = next;
  }
  use(node);
  return done;
}

bool PrefixIndex::evict() {
  for (const auto& [time, node] : by_time_) {
    if (!node->children.empty() || cache_.owners(node->page) > 1) continue;
    cache_.release(node->page);
    --pages_;
    Node* const evicted = node;
    by_time_.erase({time, evicted});
    evicted->parent->children.erase(evicted->parent->children.find(evicted->tokens));
    return true;
  }
  return false;
}

int64_t PrefixIndex::evictable() const {
  std::set<const Node*> kept;
  int64_t count = 0;
  for (const auto& [time, node] : by_time_) {  // a page comes before the one that it follows
    if (cache_.owners(node->page) > 1 || kept.contains(node))
      kept.insert(node->parent);
    else
      ++count;
  }
  return count;
}

std::vector<PrefixIndex::Kept> PrefixIndex::list(int64_t adapter) const {
  std::vector<Kept> all;
  const auto root = roots_.find(adapter);
  if (root == roots_.end()) return all;
  std::vector<std::pair<const Node*, int64_t>> open{{&root->second, -1}};
  while (!open.empty()) {
    const auto [node, place] = open.back();
    open.pop_back();
    for (const auto& [tokens, child] : node->children) {
      open.emplace_back(child.get(), static_cast<int64_t>(all.size()));
      all.push_back({.page = child->page, .parent = place, .tokens = tokens});
    }
  }
  return all;
}

void PrefixIndex::forget(int64_t adapter) {
  const auto root = roots_.find(adapter);
  if (root == roots_.end()) return;
  std::vector<const Node*> open{&root->second};
  while (!open.empty()) {
    const Node* const node = open.back();
    open.pop_back();
    for (const auto& [tokens, child] : node->children) {
      by_time_.erase({child->last_used, child.get()});
      cache_.release(child->page);
      --pages_;
      open.push_back(child.get());
    }
  }
  roots_.erase(root);
}

void PrefixIndex::clear() {
  for (const auto& [time, node] : by_time_) cache_.release(node->page);
  by_time_.clear();
  roots_.clear();
  pages_ = 0;
}

}  // namespace mixtral
