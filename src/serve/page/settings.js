// The settings, kept in this browser; and the dialog that shows them.

import {byId, element} from './dom.js';

const fields = [
  {name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 'any'},
  {name: 'top_p', label: 'Top p', min: 0, max: 1, step: 'any'},
  {name: 'top_k', label: 'Top k', min: 0, step: 1},
  {name: 'min_p', label: 'Min p', min: 0, max: 1, step: 'any'},
  {name: 'max_tokens', label: 'Most new tokens', min: 1, step: 1},
  {name: 'seed', label: 'Seed', min: 0, step: 1},
  {name: 'frequency_penalty', label: 'Frequency penalty', min: -2, max: 2, step: 'any'},
  {name: 'presence_penalty', label: 'Presence penalty', min: -2, max: 2, step: 'any'},
  {name: 'repeat_penalty', label: 'Repeat penalty', min: 0.01, step: 'any'},
];

const defaults = {sampling: {}, stop: '', record: true, aloud: true, theme: '', model: '', keepKey: false};

function read() {
  try {
    return {...defaults, ...JSON.parse(localStorage.getItem('mixtral.settings') || '{}')};
  } catch {
    return {...defaults};
  }
}

export const settings = read();

export function saveSettings() {
  try {
    localStorage.setItem('mixtral.settings', JSON.stringify(settings));
  } catch {
    // A browser that keeps nothing: the settings hold for this visit.
  }
}

export function apiKey() {
  return sessionStorage.getItem('mixtral.key') || localStorage.getItem('mixtral.key') || '';
}

function keepKey(key) {
  sessionStorage.removeItem('mixtral.key');
  localStorage.removeItem('mixtral.key');
  if (key) (settings.keepKey ? localStorage : sessionStorage).setItem('mixtral.key', key);
}

/** The fields of a request that the settings decide. */
export function samplingFields() {
  const result = {};
  for (const {name} of fields)
    if (Number.isFinite(settings.sampling[name])) result[name] = settings.sampling[name];
  const stop = settings.stop.split('\n').filter((line) => line !== '').slice(0, 4);
  if (stop.length > 0) result.stop = stop;
  return result;
}

export function applyTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

/** Connects the dialog. `conversation()` is the one whose system prompt it shows; `changed(what)`
    is called when it closes, with whether the key is another one. */
export function startSettings(conversation, changed) {
  const dialog = byId('settings');
  for (const field of fields) {
    const input = element('input', {type: 'number', id: `set-${field.name}`, min: field.min,
                                    max: field.max, step: field.step});
    byId('sampling').append(element('label', {}, field.label, ' ', input));
  }
  byId('show-settings').addEventListener('click', () => openSettings(conversation()));
  byId('settings-form').addEventListener('submit', (event) => {
    if (!event.target.reportValidity()) event.preventDefault();
  });
  dialog.addEventListener('close', () => {
    for (const {name} of fields) {
      const input = byId(`set-${name}`);
      // A value that the field refuses, left with Escape, is not taken.
      if (!input.validity.valid) continue;
      if (input.value === '') delete settings.sampling[name];
      else settings.sampling[name] = input.valueAsNumber;
    }
    settings.stop = byId('stop-texts').value;
    settings.record = byId('record').checked;
    settings.aloud = byId('aloud').checked;
    settings.theme = byId('theme').value;
    settings.keepKey = byId('keep-key').checked;
    const before = apiKey();
    keepKey(byId('key').value.trim());
    saveSettings();
    applyTheme();
    conversation().system = byId('system').value;
    changed({key: apiKey() !== before});
  });
}

/** Opens the dialog, with the field of an id in focus. */
export function openSettings(conversation, focus = 'system') {
  byId('system').value = conversation.system;
  for (const {name} of fields) byId(`set-${name}`).value = settings.sampling[name] ?? '';
  byId('stop-texts').value = settings.stop;
  byId('record').checked = settings.record;
  byId('aloud').checked = settings.aloud;
  byId('theme').value = settings.theme;
  byId('key').value = apiKey();
  byId('keep-key').checked = settings.keepKey;
  if (!byId('settings').open) byId('settings').showModal();
  byId(focus).focus();
}
