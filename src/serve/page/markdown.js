// Renders what models write: paragraphs, headings, lists, quotes, code. Everything becomes text
// nodes of a few known elements; nothing of the text is ever read as HTML.

import {announce, element} from './dom.js';

const fence = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const heading = /^ {0,3}#{1,6}\s+(.*?)\s*#*$/;
const item = /^ {0,3}(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const quote = /^ {0,3}> ?(.*)$/;

/** Cuts a text into blocks {kind, lines, language, start}. */
export function blocksOf(text) {
  const blocks = [];
  let open = null;
  const add = (kind, line, more = {}) => {
    if (open && open.kind === kind && !more.begins) open.lines.push(line);
    else blocks.push(open = {kind, lines: [line], ...more});
  };
  let closing = null;
  for (const line of text.split('\n')) {
    if (closing) {
      const end = line.trim();
      if (end.length >= closing.length && end === closing[0].repeat(end.length)) {
        closing = null;
        open = null;
      } else {
        open.lines.push(line);
      }
      continue;
    }
    let match;
    if ((match = fence.exec(line))) {
      closing = match[1];
      blocks.push(open = {kind: 'code', lines: [], language: match[2].trim()});
    } else if (line.trim() === '') {
      open = null;
    } else if ((match = heading.exec(line))) {
      add('heading', match[1], {begins: true});
      open = null;
    } else if ((match = item.exec(line))) {
      add(match[1] ? 'bullets' : 'numbers', match[3],
          {start: match[2], begins: !open || open.kind !== (match[1] ? 'bullets' : 'numbers')});
    } else if ((match = quote.exec(line))) {
      add('quote', match[1]);
    } else if (open && (open.kind === 'bullets' || open.kind === 'numbers')) {
      open.lines[open.lines.length - 1] += `\n${line.trim()}`;
    } else {
      add('paragraph', line);
    }
  }
  return blocks;
}

const inline = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?\S)\*\*|\*(?=[^\s*])([^*]*[^\s*])\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)|(https?:\/\/[^\s<>()"'`]*[^\s<>()"'`.,;:!?])/s;

function link(text, address) {
  return element('a', {href: address, target: '_blank', rel: 'noopener noreferrer nofollow'}, text);
}

/** The nodes of a run of text. `depth` bounds what stands inside each other. */
function inlineNodes(text, depth = 0) {
  const nodes = [];
  let rest = text;
  for (let match; depth < 4 && (match = inline.exec(rest));) {
    if (match.index > 0) nodes.push(rest.slice(0, match.index));
    if (match[1]) nodes.push(element('code', {}, match[2]));
    else if (match[3]) nodes.push(element('strong', {}, ...inlineNodes(match[3], depth + 1)));
    else if (match[4]) nodes.push(element('em', {}, ...inlineNodes(match[4], depth + 1)));
    else if (match[5]) nodes.push(link(match[5], match[6]));
    else nodes.push(link(match[7], match[7]));
    rest = rest.slice(match.index + match[0].length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}

function codeBlock(block) {
  const text = block.lines.join('\n');
  const copy = element('button', {type: 'button', click: async () => {
    await navigator.clipboard.writeText(text);
    announce('Code copied.');
  }}, 'Copy');
  const language = block.language || 'code';
  return element('figure', {},
    element('figcaption', {}, element('span', {}, language), copy),
    element('pre', {tabindex: 0, role: 'region', 'aria-label': `Code: ${language}`},
      element('code', {}, text)));
}

function nodeOf(block) {
  switch (block.kind) {
    case 'code':
      return codeBlock(block);
    case 'heading':
      return element('h3', {dir: 'auto'}, ...inlineNodes(block.lines[0]));
    case 'bullets':
    case 'numbers':
      return element(block.kind === 'bullets' ? 'ul' : 'ol', {start: block.start, dir: 'auto'},
        ...block.lines.map((line) => element('li', {}, ...inlineNodes(line))));
    case 'quote':
      return element('blockquote', {dir: 'auto'}, ...inlineNodes(block.lines.join('\n')));
    default:
      return element('p', {dir: 'auto'}, ...inlineNodes(block.lines.join('\n')));
  }
}

/** Shows a text in a container. Blocks that stand there already, as those of a reply that grows
    do, stay as they are. */
export function render(container, text) {
  const blocks = blocksOf(text);
  blocks.forEach((block, index) => {
    const source = JSON.stringify(block);
    const old = container.children[index];
    if (old && old.source === source) return;
    const node = nodeOf(block);
    node.source = source;
    if (old) old.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastChild.remove();
}
