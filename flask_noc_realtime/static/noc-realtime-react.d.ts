import type { FunctionComponent, ReactNode } from "react";
import type { NocEvent, Options, Snapshot, State, Stream } from "./noc-realtime.js";

/** Gives the components below a stream: the one passed, or one opened with the other props. */
export const NocProvider: FunctionComponent<
  { children?: ReactNode } & ({ stream: Stream } | ({ stream?: undefined } & Options))
>;

/**
 * Returns a stream that is open while the component is mounted, and goes on from where it was when
 * it is mounted again; without options, the one of the provider.
 */
export function useNocStream(options?: Options): Stream;

/** Calls a handler for a type, a pattern or several, while the component is mounted. */
export function useNocEvents<Data = any>(
  stream: Stream,
  types: string | readonly string[],
  handler: (data: Data, event: NocEvent<Data>) => void,
): void;

/** Returns the state; the same object until it changes. */
export function useNocState(stream: Stream): State & Pick<Snapshot, "gaps">;
/** Returns what is selected; renders again when that has changed, with the events too. */
export function useNocState<Selected>(
  stream: Stream,
  select: (snapshot: Snapshot) => Selected,
): Selected;

export type QueryKey = readonly unknown[];

/** A key of which parts may depend on the data of an event. */
export type KeyOf<Data> = readonly (
  | string
  | number
  | boolean
  | null
  | undefined
  | Record<string, unknown>
  | ((data: Data) => unknown)
)[];

/** The part of a QueryClient of TanStack Query that is used. */
export interface QueryClientLike {
  getQueryCache(): object;
  invalidateQueries(filters?: any): Promise<void>;
}

/** Changes queries so that no fetch that began earlier undoes it. */
export interface QueryUpdates {
  /**
   * Replaces the data of one query. It may be called again for what a fetch brings, so let it say
   * what is, not how much more; undefined has the query fetched again.
   */
  change(key: QueryKey, change: (data: any) => unknown): void;
  /** Does so with every query under a key. */
  changeAll(key: QueryKey, change: (data: any) => unknown): void;
  /** Fetches the queries under the keys again. */
  refetch(...keys: QueryKey[]): void;
}

export interface Updater<Data = any> {
  /** What to fetch again after a gap. */
  keys: readonly QueryKey[];
  update(cache: QueryUpdates, data: Data, event: NocEvent<Data>): void;
}

/**
 * Keeps what a query client has fetched up to date by the events of a stream; returns how to stop.
 * After a gap all that the updaters are about is fetched again.
 */
export function bindQueryClient(
  queryClient: QueryClientLike,
  stream: Stream,
  updaters: Record<string, Updater | readonly Updater[]>,
): () => void;

export interface UpdateOptions<Data = any> {
  /** What tells one item from another; `item.id` by default. */
  id?: (item: any) => unknown;
  /** The item that an event tells; its data by default. */
  item?: (data: Data) => any;
  /** The property that holds the list, where the data of a query is none. */
  at?: string;
}

export interface ListOptions<Data = any> extends UpdateOptions<Data> {
  /** Items that a list grows to at most; 1000 by default. */
  limit?: number;
}

/** Puts what an event tells at the head of a list. */
export function prepend<Data = any>(key: KeyOf<Data>, options?: ListOptions<Data>): Updater<Data>;
/** Puts what an event tells at the end of a list. */
export function append<Data = any>(key: KeyOf<Data>, options?: ListOptions<Data>): Updater<Data>;
/** Merges what an event tells into what has its id, in all lists and items under a key. */
export function patch<Data = any>(key: KeyOf<Data>, options?: UpdateOptions<Data>): Updater<Data>;
/** Has what is under the keys fetched again. */
export function invalidate<Data = any>(...keys: KeyOf<Data>[]): Updater<Data>;
