-- how much of each data set and split is labelled, per label run
with runs as (select distinct label_run, dataset from labels),
images as (select distinct dataset, split, image_id from manifest where status = 'ok'),
labelled as (
    select label_run, dataset, image_id, bool_and(status in ('ok', 'absent')) as finished
    from labels group by all
)
select runs.label_run, images.dataset, images.split,
    count(*) as images,
    count(labelled.image_id) as labelled,
    count(*) filter (labelled.finished) as finished,
    count(*) - count(labelled.image_id) as missing,
    round(100.0 * count(*) filter (labelled.finished) / count(*), 2) as finished_percent
from runs
join images using (dataset)
left join labelled using (label_run, dataset, image_id)
group by all
order by all
